"""Numbers in sentences."""

__all__ = ['plural']


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """``'1 image'``, ``'2 images'``.

    Args:
        number: How many.
        noun: The word for one.
        nouns: The word for several; `noun` with an s when None.
    """
    return f'{number} {noun if number == 1 else nouns or f"{noun}s"}'
