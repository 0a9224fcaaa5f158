"""How well a reward model or a run does on a data set."""
