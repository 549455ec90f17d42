"""How what is shown to operators is put into words."""


def counted(number: int, noun: str) -> str:
    """`1 record`, `2 records`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sentence(text: str) -> str:
    """With a capital and a full stop: the reasons of jobs have neither."""
    text = text.strip()
    if not text:
        return ""
    names_version = "-v" in text.split(" ")[0]
    begun = text if names_version else text[0].upper() + text[1:]
    return begun if begun[-1] in ".!?" else f"{begun}."
