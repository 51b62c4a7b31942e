"""Ready-made listeners for `amp.events`: metrics and structured logs. Each imports its library when it is called.

stop = amp.instrumentation.prometheus.watch()
"""
