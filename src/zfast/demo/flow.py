"""A flow such as a Prefect user writes: which airlines and airports keep passengers waiting?"""

# Prefect's types know results as arguments of a task, not the futures of results.
# mypy: disable-error-code="call-overload"

from __future__ import annotations

from typing import Any

import pandas as pd
from prefect import flow, task

from zfast.demo.flights import read_table, repeat_years


@task
def load_flights(n_years: int) -> pd.DataFrame:
    """All flights, 336,776 a year."""
    return repeat_years(read_table("flights"), n_years)


@task
def load_weather(n_years: int) -> pd.DataFrame:
    """The weather at the three airports, hour by hour."""
    weather = repeat_years(read_table("weather"), n_years)
    return weather[["origin", "time_hour", "temp", "wind_speed", "precip", "visib"]]


@task
def load_planes() -> pd.DataFrame:
    """Year of construction and seats of each plane."""
    planes = read_table("planes")[["tailnum", "year", "seats"]]
    return planes.rename(columns={"year": "built"})


@task
def join_quarter(
    flights: pd.DataFrame, weather: pd.DataFrame, planes: pd.DataFrame, quarter: int
) -> pd.DataFrame:
    """The flights of one quarter of the years, each with its weather and its plane."""
    flown = flights[(flights["month"] - 1) // 3 == quarter].dropna(subset=["arr_delay"])
    # Some hours were recorded twice.
    weather = weather.drop_duplicates(["origin", "time_hour"])
    joined = flown.merge(weather, on=["origin", "time_hour"], how="left")
    joined = joined.merge(planes, on="tailnum", how="left")
    return joined.assign(
        age=joined["year"] - joined["built"],
        speed_mph=joined["distance"] / joined["air_time"] * 60,
        caught_up=joined["dep_delay"] - joined["arr_delay"],
        bad_weather=(joined["visib"] < 3) | (joined["precip"] > 0.1) | (joined["wind_speed"] > 30),
    )


@task
def summarise(quarters: list[pd.DataFrame], top: int) -> dict[str, Any]:
    """The worst airlines and destinations by mean delay on arrival, in minutes."""
    flights = pd.concat(quarters, ignore_index=True)
    names = read_table("airlines").set_index("carrier")["name"]

    def worst(column: str) -> pd.DataFrame:
        delays = flights.groupby(column, as_index=False).agg(
            flights=("arr_delay", "size"),
            mean_delay_min=("arr_delay", "mean"),
            mean_age_years=("age", "mean"),
        )
        busy = delays[delays["flights"] >= len(flights) / 1000]
        return busy.sort_values("mean_delay_min", ascending=False).head(top)

    carriers = worst("carrier")
    return {
        "flights": len(flights),
        "mean_delay_min": float(flights["arr_delay"].mean()),
        "mean_delay_bad_weather_min": float(flights["arr_delay"][flights["bad_weather"]].mean()),
        "carriers": carriers.assign(name=carriers["carrier"].map(names)).to_dict("records"),
        "airports": worst("dest").to_dict("records"),
    }


@flow
def flight_delays(n_years: int = 1, top: int = 8) -> dict[str, Any]:
    """Load the tables, join each quarter of the flights on its own, then reduce."""
    flights = load_flights.submit(n_years)
    weather = load_weather.submit(n_years)
    planes = load_planes.submit()
    quarters = [join_quarter.submit(flights, weather, planes, quarter) for quarter in range(4)]
    return summarise.submit(quarters, top).result()
