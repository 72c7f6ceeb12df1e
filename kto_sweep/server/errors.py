"""Errors in a request. None of them is a 5xx, which clients would retry for minutes."""


class RequestError(Exception):
    """The request is invalid; the message says why. Answered as a GraphQL error."""


class NotFoundError(RequestError):
    """The project, sweep, run or agent does not exist. Answered with HTTP 404, which makes an agent exit."""


class RefusedError(RequestError):
    """W&B refuses this with HTTP 400 too; clients do not try again."""


class BodyTooLarge(Exception):
    """The request body exceeds the limit. Answered with HTTP 413."""

    def __str__(self) -> str:
        return "the body is too large"


class BodyTooSlow(Exception):
    """The rest of the request body does not arrive. Answered with HTTP 408, after which wandb retries."""

    def __str__(self) -> str:
        return "the rest of the body did not arrive"


class DiskFull(Exception):
    """The server's disk has no room for an upload. Answered with HTTP 507, after which wandb retries."""


class ContentDamaged(Exception):
    """A stored file is missing or not what was uploaded. Answered with HTTP 410, without its content."""
