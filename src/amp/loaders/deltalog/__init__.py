"""The log of Delta Lake, in which Delta tables and the Parquet store keep their streams."""
