-- Dagster's runs, events and schedules, beside the cities' database.
CREATE DATABASE dagster;
