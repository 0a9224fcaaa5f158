"""A reward of your own: how well a reply keeps to the style of the house."""


def house_style(response: str) -> float:
    """A point for the greeting, a point for saying thanks, and less for every word above eighty."""
    text = response.lower()
    greets = text.startswith(("dear", "hello", "good morning"))
    return greets + ("thank" in text) - max(0, len(text.split()) - 80) / 40
