"""What each command of the command line does: options to calls, results to text or JSON."""
