"""What an operator sees and does. The console, the API and the command line only call this."""
