"""The rooms behind the loader of Snowflake."""
