"""The ways to reach PostgreSQL: each module beside this one is a driver, or what several of them share."""
