"""The commands of the command line, one file per family. Nothing heavy is imported before a command needs it."""
