"""Reading, checking, editing and writing configs; nothing here knows a data set or a network."""
