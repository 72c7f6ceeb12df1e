"""kto-sweep chat: what a base model and a tuned one answer."""

import click

from kto_sweep.cli.output import console, json_option, print_json


@click.command()
@click.argument("run")
@click.option(
    "--prompt", "prompts", multiple=True, help="What a user says; again for more. Default: held-out."
)
@click.option("--count", type=click.IntRange(min=1), default=3, show_default=True, help="Held-out prompts.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Per answer.")
@click.option("--best", is_flag=True, help="The adapters of the best evaluation, not of the last step.")
@json_option
def chat(run: str, prompts: tuple[str, ...], count: int, max_tokens: int, best: bool, as_json: bool) -> None:
    """Show the answers of the base model and of RUN, a run or trial of this box, side by side.

    Answers are the most likely ones, word by word, so that the same command gives the same answers.

    \b
    kto-sweep chat ab12cd34
    kto-sweep chat ab12cd34 --prompt "My parcel is late." --json
    """
    from dataclasses import asdict

    from kto_sweep.home import Home
    from kto_sweep.train.chat import compare_answers
    from kto_sweep.train_command.resume import go_where_it_began, known_run

    home = Home.from_environment()
    folder = known_run(home, run)
    go_where_it_began(folder)
    found = compare_answers(home, folder, prompts, count=count, max_tokens=max_tokens, best=best)
    if as_json:
        print_json({"run": folder.name, "answers": [asdict(answers) for answers in found]})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("prompt", "base", "tuned", show_lines=True)
    for answers in found:
        table.add_row(escape(answers.prompt), escape(answers.base), escape(answers.tuned))
    console().print(table)
