"""The command line: arguments to preset to job to runner, one file for each command. Start in `app`."""
