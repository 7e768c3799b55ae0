"""Arrays in, numbers out: nothing here touches a file or a network."""
