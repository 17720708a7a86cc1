"""The parts of the report: each module turns what was seen of a run into the words, rows and drawings that the template places."""
