"""Words for messages and terminals, which may have to tell of what a stranger wrote."""


def short(value: object, length: int = 60) -> str:
    """Describe a value in at most ``length`` ASCII characters, whatever it holds and however large it is."""
    try:
        text = ascii(value[: length + 1] if isinstance(value, str | bytes | list | tuple) else value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists nested too deep to print
        return f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= length else text[: length - 3] + "..."


def printable(text: str) -> str:
    """Escape all characters, except new lines, that a terminal would obey or refuse; file names may hold any."""
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


def counted(number: int, one: str) -> str:
    """Say how many there are of a thing: 1 image, 2 images, 3 classes."""
    return f"{number} {one}" if number == 1 else f"{number} {one}{'es' if one.endswith('s') else 's'}"
