"""The command line: arguments to preset to job to runner, one file a command."""
