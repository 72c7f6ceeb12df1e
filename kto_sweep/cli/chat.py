"""kto-sweep chat: answers of the base model and the tuned model."""

import click

from kto_sweep.cli.output import console, json_option, print_json, say


@click.command()
@click.argument("run")
@click.option(
    "--prompt", "prompts", multiple=True, help="A user message. Repeatable. Default: held-out prompts."
)
@click.option(
    "--count", type=click.IntRange(min=1), default=3, show_default=True, help="Number of held-out prompts."
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens per answer."
)
@click.option("--best", is_flag=True, help="Use the adapters of the best evaluation, not of the last step.")
@json_option
def chat(run: str, prompts: tuple[str, ...], count: int, max_tokens: int, best: bool, as_json: bool) -> None:
    """Show answers of the base model and of RUN, a run or trial on this box, side by side.

    Decoding is greedy, so the same command always gives the same answers.

    \b
    kto-sweep chat ab12cd34
    kto-sweep chat ab12cd34 --prompt "My parcel is late." --json
    """
    from dataclasses import asdict

    from kto_sweep.home import Home
    from kto_sweep.memory_limit import TORCH_BYTES, require_address_space

    require_address_space(TORCH_BYTES, "chat")
    from kto_sweep.train.chat import compare_answers
    from kto_sweep.train_command.resume import require_run, restore_working_directory

    home = Home.from_environment()
    folder = require_run(home, run)
    restore_working_directory(folder)
    answers = compare_answers(
        home,
        folder,
        prompts,
        count=count,
        max_tokens=max_tokens,
        best=best,
        say=lambda line: say(line, as_json=True),  # the answers alone are the output
    )
    if as_json:
        print_json({"run": folder.name, "answers": [asdict(answer) for answer in answers]})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("prompt", "base", "tuned", show_lines=True)
    for answer in answers:
        table.add_row(escape(answer.prompt), escape(answer.base), escape(answer.tuned))
    console().print(table)
