"""What can be wrong with a request. None of these is a 5xx: the client would retry it for minutes."""


class RequestError(Exception):
    """The request asks for something that cannot be; the text says what. Answered as a GraphQL error."""


class GoneError(RequestError):
    """The sweep or agent does not exist any more. Answered with HTTP 404, which ends an agent."""
