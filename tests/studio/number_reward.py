"""A reward by name for the server of these tests: the last number of a response is its reward."""


def number(response: str) -> float:
    return float(response.rsplit(maxsplit=1)[-1])


class Counted:
    """A reward model that counts how often it was made; the first one can't be."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        if self.made == 1:
            raise OSError("the disk was busy")

    async def score(self, messages, responses):
        return [float(self.made) for _ in responses]


class Loaded:
    """The same, with 1000 more for each time that it was made."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self._more = 1000 * self.made

    async def score(self, messages, responses):
        return [number(response) + self._more for response in responses]
