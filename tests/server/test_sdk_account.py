"""What the real SDK reads of users, teams and organizations, and of a sweep's prior runs."""

from machine import Machine
from sdk_scripts import run_script, script_results, start_script


def test_the_single_user_is_the_viewer_and_the_member_of_every_team(machine: Machine) -> None:
    code = """
api = wandb.Api()
viewer, team = api.viewer, api.team("local")
report([viewer.username, viewer.admin, viewer.teams, viewer.api_keys, api.default_entity])
report([api.user("local").email, [user.username for user in api.users("loc")], api.users("nosuch")])
report([team.name, [[member.username, member.account_type] for member in team.members]])
try:
    api.organization("nosuch")
except wandb.Error as error:
    report(str(error))
"""
    viewer, users, team, organization = script_results(start_script(machine, code))
    assert viewer == ["local", False, ["local"], ["local"], "local"]
    assert users == ["local@localhost", ["local"], []]
    assert team == ["local", [["local", "USER"]]]
    assert organization == "Organization 'nosuch' not found."


def test_prior_runs_are_listed_and_counted(machine: Machine) -> None:
    code = """
with wandb.init(project="prior", config={"a": 2}) as run:
    run.log({"x": 1})
with wandb.init(project="prior", config={"a": 9}) as other:
    other.log({"x": 1})
grid = {"method": "grid", "parameters": {"a": {"values": [1, 2, 3]}}}
sweep = wandb.sweep(grid, project="prior", prior_runs=[run.id, other.id])
query = '''query($s: String!) { project(name: "prior", entityName: "acme") { sweep(sweepName: $s) {
    state runCount runCountExpected priorRuns { edges { node { name } } } } } }'''
answer = wandb.Api()._service_api.execute_graphql(query, variables={"s": sweep})
report([answer["project"]["sweep"], [run.id, other.id]])
"""
    sweep, prior = run_script(machine, code)
    assert (sweep["state"], sweep["runCount"], sweep["runCountExpected"]) == ("PENDING", 2, 3)
    assert [edge["node"]["name"] for edge in sweep["priorRuns"]["edges"]] == prior


def test_a_run_is_deleted_twice(machine: Machine) -> None:
    code = """
made = wandb.Api().create_run(entity="acme", project="deleted")
run = wandb.Api().run(f"acme/deleted/{made.id}")
run.delete()
run.delete(delete_artifacts=True)
report(len(wandb.Api().runs("acme/deleted")))
"""
    assert run_script(machine, code) == 0
