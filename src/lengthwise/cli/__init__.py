"""The command line: a file for each verb, and one for those around a server (`operate`)."""
