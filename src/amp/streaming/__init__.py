"""What a stream means: pure state machines, and the few rooms that read for them."""
