"""The one place with sockets, threads and clocks: it carries out what the cores ask for."""
