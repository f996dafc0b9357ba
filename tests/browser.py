"""A real browser for tests of pages, and a wait for what a page shows."""

import shutil
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

PROGRAMS = {"chromium": "chromium", "chromedriver": "chromium-driver"}
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


@contextmanager
def browser(folder, *flags):
    """Chromium with a fresh profile in a folder."""
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            pytest.fail(f"no {program} to test pages with: apt-get install {package}", False)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={folder}", "--window-size=1200,1600", *flags):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def until(driver, condition, seconds=60):
    """The condition's first true value; a failure names the condition."""
    what = f"within {seconds} s: {condition.__name__}"
    return WebDriverWait(driver, seconds, poll_frequency=0.1).until(lambda _: condition(), what)
