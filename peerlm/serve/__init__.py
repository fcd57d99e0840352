"""Answering: any node that holds the model continues texts over HTTP, for programs written for OpenAI's interface.

http        requests and answers on a socket                     asyncio
driver      the thread in which sessions advance; new weights     a thread, a clock
service     sessions, scheduler, route and sampler put together  ─┐
scheduler   who is admitted, who advances by which tokens         │
session     one text in the making: its ids, its text, its end    ├─ pure
request     what a client may ask, checked                        │
answer      what a client is told, in OpenAI's shapes             │
keys        who may ask, and how much a minute                   ─┘
route       the interface of whatever advances sessions
engine      the whole model on this machine as a route; sampling  torch
"""
