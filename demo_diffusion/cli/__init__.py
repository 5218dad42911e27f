"""How commands are spoken to.

Read `options` (a field with its help and range), then `config_file` (YAML with one section a dataclass, overridden on
the command line) and `command` (a user's mistake ends in one line).
"""
