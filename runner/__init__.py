"""runner: a sandboxed tool-runner daemon for AI agents. Imports nothing: see each package's docstring."""

VERSION = "0.1.0"
