"""Running a study: what it is, who decides, who runs, what is kept."""
