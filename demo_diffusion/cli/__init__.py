"""How commands are spoken to.

Read `options` (a field with its help and range), then `arguments` (options made of a class's constructor),
`config_file` (YAML with one section a dataclass, overridden on the command line) and `command` (a user's mistake ends
in one line).
"""
