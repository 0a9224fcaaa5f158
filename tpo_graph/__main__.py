"""`python -m tpo_graph` is the command `tpo-graph`."""

from tpo_graph.cli.app import main

if __name__ == "__main__":
    main()
