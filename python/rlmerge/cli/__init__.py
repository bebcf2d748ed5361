"""The command line of rlmerge."""
