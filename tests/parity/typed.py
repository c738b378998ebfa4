"""The official clients build their models without checking them; this checks."""


def typed(value):
    """value, after its model has read it strictly: every field that the service promises is there
    and is what its type says, at every depth."""
    type(value).model_validate(value.model_dump(by_alias=True, exclude_unset=True))
    return value
