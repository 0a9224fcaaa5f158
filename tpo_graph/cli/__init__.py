"""The command `tpo-graph`.

Results go to stdout, all else to stderr. Nothing heavy is imported until a command needs it, so that `--help`
is quick and the first line of progress comes before the models' libraries are loaded.
"""
