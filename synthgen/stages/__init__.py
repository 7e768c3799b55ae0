"""One module per stage: reads its declared inputs, calls the library, writes its declared outputs."""
