"""The message catalogue and its codec as protocol version 2 had them.

Never edited: nodes of that version are out there. When no node of ours speaks it any more, the folder goes.
"""
