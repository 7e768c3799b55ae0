"""Raw files to prepared arrays, leak-proof folds and Parquet shards."""
