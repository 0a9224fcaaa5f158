"""People in the loop: nodes that ask a person."""
