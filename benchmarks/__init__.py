"""What a step costs here and elsewhere; every module is one command."""
