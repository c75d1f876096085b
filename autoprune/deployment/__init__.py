"""From a finished model to what runs it: quantised files, back ends, and what they take."""
