"""What came out of a study: the front, tables, the HTML report, picks."""
