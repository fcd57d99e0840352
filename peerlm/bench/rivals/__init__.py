"""Others who average weights, as scripts that run in a process, and an interpreter, of their own.

They know nothing of peerlm, and nothing of peerlm imports them. Each does what a line on its standard
input says and answers with a line of JSON: `prepare` (not timed), then `round`, which answers with when
it began and ended by the machine's monotonic clock. The end of standard input is the end of the process.
"""
