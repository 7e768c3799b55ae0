"""What people read: the report page and the data card. Takes records and arrays, gives text; touches no stage."""
