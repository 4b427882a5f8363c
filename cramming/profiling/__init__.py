"""Where the time of a run's steps goes, against the time its matrix products alone would take."""
