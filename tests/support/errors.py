"""What an action says when it is refused, where `pytest.raises` would end a case too early."""


def error_of(call):
    """The message, or nothing if it went well."""
    try:
        call()
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error)
    return ""
