"""The only room that knows Flight SQL: what goes over the wire, who carries it, and what its failures mean."""
