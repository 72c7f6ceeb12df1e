"""What W&B has and this server does not keep: one sentence for each family, for the error that clients show.

A family is recognised by the fields of its GraphQL documents. The SDK shows the error of a call that waits
for its answer; run_notices.py covers the others.
"""

from dataclasses import dataclass
from typing import Any

from graphql import DocumentNode, FieldNode, Visitor, visit


@dataclass(frozen=True)
class Family:
    """A part of W&B that this server does not keep."""

    name: str
    instead: str
    """What the user can do; a part of a sentence."""
    fields: frozenset[str]
    """Fields that only documents of this family have."""

    @property
    def sentence(self) -> str:
        """The error for the client."""
        return f"this server does not keep {self.name}: {self.instead}"


LAUNCH = Family(
    "launch queues, launch jobs and launch agents",
    "use `wandb sweep`, and `wandb agent` on each machine",
    frozenset(
        "ackRunQueueItem createDefaultResourceConfig createLaunchAgent createRunQueue defaultResourceConfig "
        "deleteFromRunQueue deleteRunQueues failRunQueueItem launchAgent popFromRunQueue pushToRunQueue "
        "pushToRunQueueByName runQueue runQueues updateLaunchAgent updateRunQueueItemWarning "
        "upsertRunQueue".split()
    ),
)
AUTOMATIONS = Family(
    "automations, webhooks and integrations",
    "`run.alert()` shows a warning on the run's page",
    frozenset(
        "createFilterTrigger createGenericWebhookIntegration deleteTrigger integrations triggers "
        "updateFilterTrigger".split()
    ),
)
REGISTRIES = Family(
    "organizations and their registries",
    "link an artifact to a collection of a project: `run.link_artifact(artifact, 'PROJECT/COLLECTION')`",
    frozenset(
        "advancedRegistryFeatures allowAllArtifactTypesInRegistry createProjectMembers deleteModel "
        "deleteProjectMembers orgEntity renameProject role teamMembers updateProjectMember "
        "updateProjectTeamMember".split()
    ),
)
REPORTS = Family(
    "reports and saved views",
    "`kto-sweep compare SWEEP --html FILE` writes a report of a sweep",
    frozenset(
        "allViews createAccessToken deleteView revokeAccessToken updateAccessTokenProjects upsertView "
        "view".split()
    ),
)
ACCOUNTS = Family(
    "users, teams, invitations and further API keys",
    "everyone with its key is its one user",
    frozenset(
        "createInvite createServiceAccount createTeam createUser deleteApiKey deleteInvite "
        "generateApiKey".split()
    ),
)
CHARTS = Family(
    "presets of custom charts",
    "`run.log()` keeps the values of a chart",
    frozenset({"createCustomChart"}),
)
FAMILIES = (LAUNCH, AUTOMATIONS, REGISTRIES, REPORTS, ACCOUNTS, CHARTS)


def family_of(document: DocumentNode) -> Family | None:
    """The first family with a field in the document, which the schema does not have."""
    names = _FieldNames()
    visit(document, names)
    return next((family for family in FAMILIES if family.fields & names.found), None)


class _FieldNames(Visitor):
    """Collects the names of a document's fields."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def enter_field(self, node: FieldNode, *_: Any) -> None:
        self.found.add(node.name.value)
