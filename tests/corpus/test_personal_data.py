# SPDX-License-Identifier: Apache-2.0
"""Personal data: what is found and what is let pass, on sentences with known answers; and what is done with it.

The sentences are written for this file, so the figures say how the patterns do on the formats listed here, some of
which they are known to miss or to mistake; they are no estimate for a corpus. The table of them:

    PYTHONPATH=recipes:tests python tests/corpus/test_personal_data.py
"""

import calendar
import csv
import pickle
import random
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from personal_forms import measure_forms, read_forms

from corpus.labelled_identifiers import LABELLED, find_labelled, label_pattern
from corpus.personal_data import (
    KINDS,
    NEVER,
    PATTERNS,
    PLACEHOLDERS,
    PROFILES,
    Redactor,
    find_digits,
    find_forms,
    is_personal,
)
from recipe_config import PersonalData, PersonalDataKind


EVERYTHING = Redactor("general", dict.fromkeys(KINDS, "replace"))
SENTENCES_PER_KIND = 180
MONTHS = list(calendar.month_name)[1:]
FILLER = [
    "The judgment of the Court of Appeals is affirmed; see 26 U.S.C. 501(c)(3) and 410 U.S. 113, 152-153 (1973).",
    "Pursuant to Section 4.2 of the Agreement, the Borrower shall pay $1,250,000.00 on or before June 30, 2021.",
    "Net revenue rose 12.5% to $48.3 million for fiscal 2019-2020, against a par value of $0.001 a share.",
    "The Notes (CUSIP 037833100, ISIN US0378331005) mature on 15 March 2029 and bear interest at 4.125%.",
    "On examination the blood pressure was 128/82 and the pulse 76; metformin 500 mg was given twice daily.",
    "Type 2 diabetes (E11.9, I10) was treated by 45 CFR 164.514(b)(2) standards in 1,204 patients (95% CI 0.71-0.94).",
    "L\u2019article 1240 du code civil s\u2019applique au pr\u00e9judice \u2014 \u6c11\u6cd5\u7b2c709\u6761.",
]


def test_the_schema_names_the_same_kinds_and_profiles():
    assert get_args(PersonalDataKind) == tuple(KINDS)
    assert set(get_args(PersonalData.model_fields["profile"].annotation)) == set(PROFILES)


def digits(rng: random.Random, form: str) -> str:
    """Fill a form: # is any digit, N one from 2 to 9."""
    return re.sub("[#N]", lambda match: str(rng.randrange(2 if match[0] == "N" else 0, 10)), form)


def name(rng):
    return rng.choice(["jane", "m.okafor", "lee_h", "r-silva", "anna.k"]) + str(rng.choice(["", 7, 42]))


def email(rng):
    domain = rng.choice(["mail.ru", "courts.state.tx.us", "st-hospital.org", "bigbank.co.uk", "law.ai", "firm.museum"])
    return name(rng) + rng.choice(["", "", "+trial"]) + "@" + domain


def ip(rng):
    return (
        f"{rng.choice([8, 51, 73, 98, 142, 203])}.{rng.randrange(64, 256)}.{rng.randrange(256)}.{rng.randrange(256)}"
    )


def ssn(rng, gap="-"):
    area = rng.choice([area for area in range(1, 900) if area != 666])
    return f"{area:03}{gap}{rng.randrange(1, 100):02}{gap}{rng.randrange(1, 10_000):04}"


def ein(rng, gap="-"):
    return rng.choice(["01", "13", "20", "36", "47", "52", "61", "77", "88", "94"]) + gap + digits(rng, "#######")


def itin(rng, gap="-"):
    return digits(rng, "9##") + gap + str(rng.choice([50, 65, 71, 88, 90, 94, 99])) + gap + digits(rng, "####")


def iban(rng, valid=True):
    form = rng.choice(["DE##################", "GBWEST##############", "FR#######################", "NO###########"])
    form = rng.choice([form, "NLABNA##########", "CH#################", "MTMALT" + 23 * "#"])
    country, rest = form[:2], digits(rng, form[2:])
    check = 98 - int("".join(str(int(c, 36)) for c in rest + country + "00")) % 97
    return f"{country}{check if valid else (check + rng.randrange(1, 90)) % 97:02}{rest}"


def spaced(value, gap=" "):
    return gap.join(value[i : i + 4] for i in range(0, len(value), 4))


def luhn(rng, form, valid=True):
    body = digits(rng, form)
    total = sum(sum(divmod(2 * int(d), 10)) for d in body[::-2]) + sum(map(int, body[-2::-2]))
    return body + str((-total + (0 if valid else rng.randrange(1, 10))) % 10)


def card(rng):
    return luhn(rng, rng.choice(["4" + 14 * "#", "51" + 13 * "#", "2221" + 11 * "#", "6011" + 11 * "#"]))


def area(rng):
    return rng.choice(["202", "312", "415", "617", "713", "918"])


def phone(rng, gap="-"):
    return f"{area(rng)}{gap}{rng.choice(['234', '456', '721', '983'])}{gap}{digits(rng, '####')}"


def date(rng):
    year, month, day = rng.randrange(1920, 2020), rng.randrange(12), rng.randrange(1, 29)
    ordinal = f"{day}{ {1: 'st', 2: 'nd', 3: 'rd', 21: 'st', 22: 'nd', 23: 'rd'}.get(day, 'th') }"
    return rng.choice(
        [
            f"{MONTHS[month]} {day}, {year}", f"{MONTHS[month]} {ordinal}, {year}", f"{day} {MONTHS[month]} {year}",
            f"{MONTHS[month][:3]}. {day}, {year}", f"{month + 1:02}/{day:02}/{year}",
            f"{month + 1}/{day}/{year % 100:02}", f"{year}-{month + 1:02}-{day:02}", f"{day:02}.{month + 1:02}.{year}",
            f"{day:02}-{MONTHS[month][:3]}-{year}",
            f"{ordinal} day of {MONTHS[month]}, {year}", f"{MONTHS[month].upper()} {day} {year}",
        ]
    )  # fmt: skip


def spanish(number: str) -> str:
    return number + "TRWAGMYFPDXBNJZSQVHLCKE"[int(number.replace("Y", "1")) % 23]


def french(number: str) -> str:
    return f"{number}{97 - int(number) % 97:02}"


def vin(rng):
    """Return a vehicle identification number; of the letters only A, worth 1, and X, worth 7, are in it."""
    body = digits(rng, "1A###X##-A#######")
    worth = [int(character.translate(str.maketrans("AX-", "170"))) for character in body]
    check = sum(a * b for a, b in zip(worth, (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2), strict=True)) % 11
    return body.replace("-", "X" if check == 10 else str(check))


def docket(rng):
    kind = rng.choice(["cv", "cr", "CV", "mj", "md"])
    return rng.choice(["", "1:", "2:"]) + digits(rng, f"1#-{kind}-0#N##") + rng.choice(["", "", "-JSR", "-ABC-DE"])


# What is to be found stands between < and >. The last of most lists can be one to be missed or mistaken.
PLANTED = {
    "email": [
        lambda r: f"Counsel may be reached at <{email(r)}>.",
        lambda r: f"Send the filing to mailto:<{email(r)}>, with a copy to the clerk.",
        lambda r: f"From: Jane Lee (<{email(r)}>)",
        lambda r: f"Contact form: <{email(r).upper()}>; the office is closed on Friday.",
        lambda r: f"<{email(r)}> wrote that the dose was halved.",
        lambda r: f"Notices: <{email(r)}>,<{email(r)}>",
        lambda r: f"\u90ae\u7bb1<{email(r)}>\u8bf7\u8054\u7cfb",
        lambda r: f"The e-mail was sent from \u201c<{email(r)}>\u201d on Monday.",
        lambda r: f"E-mail <{name(r)}@bank.com>? Ask <{email(r)}>!",
        lambda r: r.choice([f"Write to <{name(r)}> at firm dot com.", f"Write to <{email(r)}>."]),
    ],
    "ip": [
        lambda r: f"The login came from <{ip(r)}> at 03:14.",
        lambda r: f"IP address: <{ip(r)}>, assigned to the defendant.",
        lambda r: f"The server at <{ip(r)}>:8080 was seized.",
        lambda r: f"Traffic (<{ip(r)}>) was logged.",
        lambda r: f"The hosts <{ip(r)}> and <{ip(r)}> share a subscriber.",
        lambda r: f"The subscriber used <2601:{digits(r, '###')}:4c00::1a>.",
        lambda r: f"Records of <{ip(r)}>.",
    ],
    "iban": [
        lambda r: f"Pay to IBAN <{iban(r)}>.",
        lambda r: f"The sum goes to <{spaced(iban(r))}>, value date Monday.",
        lambda r: f"Beneficiary account: <{spaced(iban(r))}> EUR",
        lambda r: f"IBAN:<{iban(r)}>; BIC COBADEFFXXX.",
        lambda r: f"from <{iban(r)}> to <{spaced(iban(r), chr(0xA0))}>",
        lambda r: f"The transfer to (<{iban(r)}>) was blocked.",
        lambda r: r.choice([f"IBAN <{iban(r).lower()}>", f"IBAN <{spaced(iban(r), '-')}>"]),
    ],
    "card": [
        lambda r: f"The charge on card <{card(r)}> was disputed.",
        lambda r: f"Visa <{spaced(card(r))}>, expiring 04/27.",
        lambda r: f"Card number: <{spaced(card(r), '-')}>",
        lambda r: f"Amex <{(lambda n: f'{n[:4]} {n[4:10]} {n[10:]}')(luhn(r, '37' + 12 * '#'))}> was declined.",
        lambda r: f"American Express no. <{luhn(r, '34' + 12 * '#')}>.",
        lambda r: f"JCB <{luhn(r, '3530' + 11 * '#')}> and Diners <{luhn(r, '3601' + 9 * '#')}> were skimmed.",
        lambda r: f"The patient paid with <{spaced(card(r))}> 123 at the desk.",
        lambda r: f"Card <{spaced(card(r), '.')}> or Card (<{card(r)}>)",
    ],
    "ssn": [
        lambda r: f"Her social security number is <{ssn(r)}>.",
        lambda r: f"SSN: <{ssn(r, '')}>",
        lambda r: f"SSN <{ssn(r, ' ')}> appears on the claim.",
        lambda r: f"The debtor (<{ssn(r)}>) filed in Ohio.",
        lambda r: f"Soc. Sec. No. <{ssn(r)}>",
        lambda r: f"Employee Jane Lee, <{ssn(r)}>, earned $48,000.",
        lambda r: f"with Social Security Number <{ssn(r, chr(0x2013))}> on file",
        lambda r: f"SSN #<{ssn(r)}>; payroll.",
        lambda r: r.choice([f"The number <{ssn(r, ' ')}> was hers.", *[f"SSN=<{ssn(r)}>"] * 4]),
    ],
    "tax": [
        lambda r: f"EIN: <{ein(r)}>",
        lambda r: f"(I.R.S. Employer Identification No.) <{ein(r)}>",
        lambda r: f"The trust (<{ein(r)}>) filed Form 990.",
        lambda r: f"ITIN <{itin(r)}> was issued in May.",
        lambda r: f"Taxpayer Identification Number: <{ein(r, '')}>",
        lambda r: f"Tax ID <{ein(r)}>.",
        lambda r: f"Employer Identification Number (EIN) <{ein(r)}>",
        lambda r: f"His taxpayer ID is <{itin(r, '')}>.",
        lambda r: r.choice([f"the return of <{ein(r, '')}>", *[f"FEIN <{ein(r)}>"] * 4]),
    ],
    "account": [
        lambda r: f"Wire to account number <{digits(r, 'N#########')}>.",
        lambda r: f"Acct. No. <{digits(r, 'N###-#####')}> at the Bank",
        lambda r: f"Checking account <{digits(r, 'N#######')}> was overdrawn.",
        lambda r: f"Account #: <{digits(r, 'N##########')}>; ABA routing <021000021>.",
        lambda r: f"the deposit account no. is <{digits(r, 'N######')}>",
        lambda r: f"brokerage account Z<{digits(r, 'N#######')}>",
        lambda r: f"A/C No: <{digits(r, 'N## ### ####')}>",
        lambda r: f"account number \u201c<{digits(r, 'N######')}>\u201d",
        lambda r: r.choice([f"funds held under <{digits(r, 'N######')}>", *[f"Account: <{digits(r, 'N#####')}>"] * 4]),
    ],
    "record": [
        lambda r: f"MRN: <{digits(r, 'N#######')}>",
        lambda r: f"Medical record number <{digits(r, 'N######')}>, admitted Monday.",
        lambda r: f"medical record no. <{digits(r, 'N##-##-##')}>",
        lambda r: f"Patient ID: <{digits(r, '0N#####')}>",
        lambda r: f"MRN <A{digits(r, 'N#######')}> was reviewed.",
        lambda r: f"(MR# <{digits(r, 'N#####')}>)",
        lambda r: f"Medical Record Number (MRN): <{digits(r, 'N#########')}>",
        lambda r: f"hospital number <{digits(r, 'N######')}>",
        lambda r: r.choice([f"Pt <{digits(r, 'N######')}> was seen.", *[f"MRN#<{digits(r, 'N######')}>"] * 5]),
    ],
    "docket": [
        lambda r: f"See Smith v. Jones, No. <{docket(r)}> (D. Mass. 2019).",
        lambda r: f"Case <{docket(r)}>, Document 14",
        lambda r: f"In No. <{digits(r, '9#-N##')}>, the petition is denied.",
        lambda r: f"Docket No. <{digits(r, '0#-N###')}>",
        lambda r: f"Civil Action No. <{docket(r)}>",
        lambda r: f"Nos. <{digits(r, '1#-N###')}> and others are consolidated.",
        lambda r: f"Bankr. Case No. <{digits(r, '1#-NN###')}> was closed.",
        lambda r: r.choice([f"Index <{digits(r, 'N#####/20##')}>", *[f"case number <{docket(r)}>"] * 5]),
    ],
    "birth": [
        lambda r: f"DOB: <{date(r)}>",
        lambda r: f"He was born on <{date(r)}> and moved to Ohio.",
        lambda r: f"Date of birth <{date(r)}>.",
        lambda r: f"born in St. Louis, Missouri, on <{date(r)}>",
        lambda r: f"Jane Lee (b. <{date(r)}>) is the director.",
        lambda r: f"The claimant, born <{date(r)}>, has a high school education.",
        lambda r: f"Date of Birth: <{date(r)}>; sex: F",
        lambda r: f"D.O.B. <{date(r)}>",
        lambda r: f"Her birth date was <{date(r)}>.",
        lambda r: f"was born\non the <{date(r)}>",
        lambda r: r.choice([f"His birthday is <{date(r)}>.", *[f"date of birth is <{date(r)}>"] * 5]),
    ],
    "phone": [
        lambda r: f"Call <({area(r)}) {phone(r)[4:]}> before noon.",
        lambda r: f"Telephone: <{phone(r)}>",
        lambda r: f"Tel. <{phone(r, '.')}>, fax <{phone(r, '')}>",
        lambda r: f"The office (<{phone(r)}>) is closed.",
        lambda r: f"<+1 {phone(r)}> or toll free <1-800-{phone(r)[4:]}>",
        lambda r: f"London: <+44 20 7946 {digits(r, '####')}>",
        lambda r: f"Berlin <+49 (0)30 {digits(r, 'N######')}> (24 hours)",
        lambda r: f"Mobile <{phone(r, ' ')}>",
        lambda r: f"phone number is <{phone(r)} x{digits(r, 'N##')}>, or <{phone(r)}ext. {digits(r, '##')}>",
        lambda r: f"<{phone(r)}>/<{phone(r)}>; <({area(r)}){phone(r)[4:]}>/<({area(r)}){phone(r)[4:]}>",
        lambda r: f"Telephone No. <{phone(r)}>",
        lambda r: f"call us at <{phone(r)[4:]}>",
        lambda r: f"Tel: <020 7946 {digits(r, '####')}>",
        lambda r: f"\u7535\u8bdd<+86 138 {digits(r, '#### ####')}>\u3002",
        lambda r: (
            f"<07700 {digits(r, '9#####')}> or <01 {digits(r, '## ## ## ##')}> or "
            f"<0049 30 {digits(r, 'N######')}>"
        ),
        lambda r: r.choice([f"Reach me on <{phone(r, ' ')}>.", *[f"<{area(r)}/{phone(r)[4:]}>"] * 2]),
    ],
    "national_id": [
        lambda r: f"NI number: <{digits(r, 'AB ## ## ## C')}>, employer unknown.",
        lambda r: f"con DNI <{spanish(digits(r, '########'))}>, vecino de Sevilla",
        lambda r: f"the foreigner (<{spanish('Y' + digits(r, '#######'))}>) resides here",
        lambda r: f"\uc8fc\ubbfc\ub4f1\ub85d\ubc88\ud638 <{digits(r, 'N#0N1#-2######')}>",
        lambda r: f"Steuer-ID <{digits(r, 'N##########')}>; AHV-Nr. <756.{digits(r, '####.####.##')}>",
        lambda r: f"n\u00b0 de s\u00e9curit\u00e9 sociale <{french(digits(r, '1##0N75######'))}>.",
        lambda r: r.choice([f"a number <{digits(r, '###########')}> of hers",
            *[f"CPF <{digits(r, '###.###.###-##')}>"] * 5]),
    ],
    "passport": [
        lambda r: f"Passport No. <{digits(r, '#########')}>, exp. 2031",
        lambda r: f"US passport <{digits(r, 'C########')}> was seized.",
        lambda r: f"Reisepass-Nr. <C01X{digits(r, '0###H')}>; Pasaporte <PAB{digits(r, '######')}>",
        lambda r: r.choice([f"travel document <{digits(r, '#########')}>",
            *[f"passport number is <{digits(r, '#########')}>"] * 8]),
    ],
    "licence": [
        lambda r: f"Driver's License No. <{digits(r, 'D#######')}>",
        lambda r: f"NPI: <{digits(r, '1#########')}> and DEA # <BF{digits(r, '#######')}>",
        lambda r: f"driving licence <{digits(r, '########')}>; F\u00fchrerschein <B072{digits(r, '###')}>",
        lambda r: r.choice([f"licensed as <{digits(r, '#####')}>",
            *[f"medical license no. <{digits(r, 'G#####')}>"] * 5]),
    ],
    "vehicle": [
        lambda r: f"VIN <{vin(r)}>, a sedan",
        lambda r: f"The car (<{vin(r)}>) was towed.",
        lambda r: f"license plate <{digits(r, 'KLX ####')}>; Kennzeichen <H-KR {digits(r, 'N###')}>",
        lambda r: r.choice([f"tag <{digits(r, 'ABC ####')}> (Ohio)", *[f"V.I.N. <{vin(r)}>"] * 5]),
    ],
    "device": [
        lambda r: f"MAC address <{digits(r, '##:1A:2B:##:##:5E')}> joined.",
        lambda r: f"interface <{digits(r, '00##-AC##').replace('-', '.')}.{digits(r, '####')}> up",
        lambda r: f"The pacemaker (model Ventra), serial number <PJN{digits(r, '######')}>, was checked.",
        lambda r: r.choice([f"Implant S/N <{digits(r, 'PJN######')}>",
            *[f"wifi <{digits(r, 'aa-##-##-bb-##-##')}>"] * 5]),
    ],
    "date": [
        lambda r: f"Admitted <{date(r)}>, room 4.",
        lambda r: f"DISCHARGE DATE: <{date(r)}>",
        lambda r: f"date of service: <{date(r)}>",
        lambda r: f"She died <{date(r)}>.",
        lambda r: f"Fecha de alta: <{date(r)}>; \uc785\uc6d0\uc77c <2022-11-{digits(r, '1#')}>",
        lambda r: r.choice([f"Rounds of <{date(r)}> were quiet.", *[f"Date of death was <{date(r)}>."] * 5]),
    ],
    "age": [
        lambda r: f"A <{digits(r, '9#')}-year-old> woman fell.",
        lambda r: f"The resident, <aged {digits(r, '9#')}>, lives alone.",
        lambda r: f"She is <{digits(r, '10#')} years old>.",
        lambda r: f"M. Roux (<{digits(r, '9#')} ans>) und der <{digits(r, '9#')}-j\u00e4hrige> Patient",
        lambda r: r.choice([f"in her <{digits(r, '9#')}th> year", *[f"Pt is <{digits(r, '9#')} y/o> M"] * 5]),
    ],
    "url": [
        lambda r: f"Results: <https://portal.hospital.org/patients/{digits(r, 'N#####')}/labs>, from Monday.",
        lambda r: f"<https://pay.bank.com/q?account={digits(r, 'N########')}&lang=en>",
        lambda r: f"Log in (<http://{name(r)}:{digits(r, 'pw####')}@files.firm.com/x>) and read.",
        lambda r: f"<www.insurer.com/member?memberId={digits(r, 'N########')}>; claims only",
        lambda r: f"GET </users/{digits(r, 'N#####')}/profile> HTTP/1.1",
        lambda r: f"reset: <https://firm.com/reset?token={digits(r, 'a#f#c#d##e#b##')}>.",
        lambda r: r.choice([f"<https://firm.com/{name(r)}>", *[f"<https://firm.com/u?user={name(r)}>"] * 5]),
    ],
}  # fmt: skip
HARD_NEGATIVES = {
    "url": [
        lambda r: f"https://www.courts.gov/opinions/{digits(r, 'N######')}.pdf?page={digits(r, '##')}",
        lambda r: f"https://a.com/clients/{digits(r, '20##')}/ and https://a.com/search?q=patient+{digits(r, '####')}",
        lambda r: f"http://shop.com/item?id={digits(r, 'N#####')}&session=spring{digits(r, '20##')}",
        lambda r: f"patients/{digits(r, 'N###')} beds; GET /users/{{id}} HTTP/1.1; https://host.org/x.git",
    ],
    "national_id": [
        lambda r: (
            f"Ni content {digits(r, '#.##')} %; nie wieder {digits(r, '####')}; "
            f"NIR spectra at {digits(r, '###')} nm"
        ),
        lambda r: f"{digits(r, '########')}-{r.choice('BJK')} and order {digits(r, 'N#####')}-{digits(r, '9######')}",
        lambda r: f"Section {digits(r, '##.##.##')}-{digits(r, '##')}; a sin {digits(r, '##')} times",
        lambda r: (
            f"AB {digits(r, '##')} and CD {digits(r, '##')}; GB{digits(r, '######')}A; "
            f"DNI of {digits(r, '19##')} was"
        ),
    ],
    "passport": [lambda r: f"passport control at gate {digits(r, '##')}; passports of {digits(r, '####')} people"],
    "licence": [
        lambda r: (
            f"a license fee of {digits(r, 'N####')} dollars; the deal of {digits(r, '####')}; "
            f"DEA in {digits(r, '20##')}"
        ),
        lambda r: f"drivers licensed {digits(r, '####')}; license no. {digits(r, '######')} for the software",
    ],
    "vehicle": [
        lambda r: f"{digits(r, '#################')} and {vin(r)[:16]}; plate {digits(r, '##')} of the atlas",
        lambda r: f"vin de {digits(r, '20##')}; the license plate was unreadable in {digits(r, '20##')}",
    ],
    "device": [
        lambda r: f"at {digits(r, '1#:2#:3#:4#')}; serial number {digits(r, '######')}",
        lambda r: f"a ratio of {digits(r, '##:##:##:##:##:##')}",
    ],
    "date": [
        lambda r: f"the effective date of {date(r)}; the letter of {date(r)}; signed {date(r)}",
        lambda r: f"The rule was adopted {date(r)} and took effect {date(r)}.",
    ],
    "age": [
        lambda r: (
            f"the 9{digits(r, '#')}-year survival; aged {digits(r, 'N#').replace('9', '8')} to 90 years; "
            f"a 9{digits(r, '#')}-day limit"
        ),
        lambda r: (
            f"persons aged 90-{digits(r, '9#')}; aged 65 and over; {digits(r, '8#')}-year-old; "
            f"{digits(r, '9#')} years of rent"
        ),
    ],
    "email": [
        lambda r: f"The agency (@justice_{digits(r, '##')}) posted it.",
        lambda r: f"12 units @ ${digits(r, 'N.##')} each",
        lambda r: f"install torch@{digits(r, '2.1#.#')} and run root@localhost",
        lambda r: f"see figure_{digits(r, '#')}@2x.png",
        lambda r: "Write to help@example.com or user@mail.example.org.",
        lambda r: "a @ b.com, or @param.value, or x@y",
        lambda r: f"5 mg/kg @ {digits(r, 'N')} h.i.d.",
        lambda r: r.choice(["clone git@github.com:org/repo", *["the alias @counsel.of.record"] * 9]),
    ],
    "ip": [
        lambda r: f"the printer at 192.168.{digits(r, 'N.1##')[:5]} and 10.0.{digits(r, 'N.N')}",
        lambda r: f"Section {digits(r, 'N.N.1#.N')} applies; see 4.12.3.1 Governing law.",
        lambda r: f"version {digits(r, '9#.2.1##.N')} of the software",
        lambda r: f"OID 1.2.840.{digits(r, 'N#####')}.1.1",
        lambda r: f"Chrome 96.0.{digits(r, 'N###')}.110; 300.1.{digits(r, 'N')}.2",
        lambda r: f"The time 12:30:{digits(r, '4#')}:15 and the address 192.0.2.7",
        lambda r: f"EUR 1.234.{digits(r, 'N##')},89 (ATC A10.B.A.02)",
        lambda r: f"EC {digits(r, 'N.N.N.1##')[:8]} kinase",
        lambda r: f"build {digits(r, '6#.1##.N.N')}",
        lambda r: r.choice([f"FortiOS 7.44.128.{digits(r, 'N')}", *[f"rule {digits(r, 'N.1#.1#.1#')}"] * 5]),
    ],
    "iban": [
        lambda r: f"IBAN {iban(r, valid=False)} was rejected.",
        lambda r: f"IBAN {spaced(iban(r, valid=False))} was rejected.",
        lambda r: f"ISIN US{digits(r, '##########')}, DE{digits(r, '##########')}",
        lambda r: f"order DE{digits(r, '#########')}; container MSKU{digits(r, '#######')}",
        lambda r: f"ZZ{digits(r, '####################')} and AB12 {digits(r, '#### #### #### ####')}",
        lambda r: f"BIC COBADEFFXXX, LEI {digits(r, '5493')}00IBP32UQZ0KL{digits(r, '##')}",
        lambda r: f"part GB{digits(r, '######')}A-{digits(r, '####')}",
    ],
    "card": [
        lambda r: f"reference {luhn(r, '4' + 14 * '#', valid=False)}",
        lambda r: f"No. {spaced(luhn(r, '51' + 13 * '#', valid=False))}",
        lambda r: f"tracking number {digits(r, '4###############')}",
        lambda r: f"ISBN 978{digits(r, '##########')}; IMEI {luhn(r, '35' + 12 * '#')}",
        lambda r: f"the time stamp {digits(r, '2024013112304#####')} and 0.{card(r)}",
        lambda r: f"bar code {luhn(r, '9' + 14 * '#')}, serial {luhn(r, '8' + 14 * '#')}",
        lambda r: f"{digits(r, '1### #### #### ####')} shares; GTIN 0{digits(r, '#############')}",
        lambda r: f"SKU {card(r)} and hash a{card(r)}f",
        lambda r: f"the identifier {digits(r, r.choice(['0', '1', '4', '7', '8']) + 15 * '#')}",
    ],
    "ssn": [
        lambda r: f"Part No. {ssn(r)}; invoice {ssn(r)}",
        lambda r: f"{digits(r, '9##-1#-N###')}, 000-12-{digits(r, 'N###')}, 666-12-{digits(r, 'N###')}",
        lambda r: f"Docket no. {ssn(r)} and Case No. {ssn(r)}",
        lambda r: f"NDC {digits(r, '5####-0##-##')}, CAS {digits(r, 'N###-##-#')}, CAS 50-78-2",
        lambda r: f"ZIP 20001-{digits(r, 'N###')}; license no. {ssn(r)}",
        lambda r: f"{digits(r, '#########')} shares; CUSIP {digits(r, '#########')}",
        lambda r: f"sections {digits(r, '1##-##-1###')}-A and A-{ssn(r)}",
        lambda r: f"{ssn(r, ' ')} (rows, columns, cells)",
        lambda r: f"An SSN has nine digits: {digits(r, 'N##')}-00-1234 is none.",
        lambda r: r.choice([f"asset tag {ssn(r)}", *[f"Patent No. {ssn(r)}"] * 6]),
    ],
    "tax": [
        lambda r: f"policy {ein(r)}; No. {ein(r)}",
        lambda r: f"00-{digits(r, '#######')}, 07-{digits(r, '#######')}, 89-{digits(r, '#######')}",
        lambda r: f"a population of {digits(r, '3########')}; CUSIP {digits(r, '#########')}",
        lambda r: f"ZIP 20001-{digits(r, 'N###')}, Bates 12-{digits(r, '#######')}",
        lambda r: f"{digits(r, '9##-0#-####')} and {digits(r, '9##-6N-####').replace('62', '66')[:9]}",
        lambda r: f"serial number {ein(r)}; claim no. {ein(r)}",
        lambda r: f"12-{digits(r, '######')}, 12-{digits(r, '########')}, 1.12-{digits(r, '#######')}",
        lambda r: f"tax identification in {digits(r, '20##')}; TIN can weigh 12 {digits(r, '###')}",
        lambda r: r.choice([f"between {ein(r)} units", *[f"license {ein(r)}"] * 5]),
    ],
    "account": [
        lambda r: f"the account balance of {digits(r, 'N#######')} dollars",
        lambda r: f"FERC Account No. {digits(r, '18#.#')}; Account {digits(r, 'N###')}",
        lambda r: f"on account of {digits(r, 'N,###,###')}",
        lambda r: f"The balance of the account was {digits(r, 'N######')}.",
        lambda r: f"invoice number {digits(r, 'N#######')}; accounts 2019-2020",
        lambda r: f"accounting for {digits(r, 'N######')} units",
        lambda r: f"held in accounts; {digits(r, 'N######')} in all; accounts ended {digits(r, '####')}",
        lambda r: f"Account No. 5 was opened on 2019-01-{digits(r, '1#')}; see account {digits(r, '#')}",
        lambda r: r.choice([f"each account {digits(r, '201#0131')}", *[f"accounts due {digits(r, 'N######')}"] * 5]),
    ],
    "record": [
        lambda r: f"the medical record of {digits(r, '201#')}",
        lambda r: f"mRNA-{digits(r, '1###')} and MRNA {digits(r, '12###')}",
        lambda r: f"records of {digits(r, '12###')} patients",
        lambda r: f"NCT0{digits(r, '#######')}, PMID {digits(r, '1#######')}, lot {digits(r, 'N#####')}",
        lambda r: f"ICD-10 E11.{digits(r, '####')}; DRG {digits(r, 'N##')}; chart {digits(r, 'N.#')}",
        lambda r: f"Patient {digits(r, 'N##')} was excluded; patient IDs are listed.",
        lambda r: f"The hospital treated {digits(r, 'N#####')} people; hospital no. {digits(r, '#')}",
        lambda r: f"Medical record numbers were removed. {digits(r, 'N#####')} rows were left.",
        lambda r: f"Record at {digits(r, 'N####')}; record no. {digits(r, 'N#####')} of the docket",
        lambda r: r.choice([f"sea chart no. {digits(r, '1####')}", *[f"Hospital beds: {digits(r, '1####')}"] * 5]),
    ],
    "docket": [
        lambda r: f"Pub. L. No. {digits(r, '10#-N##')}",
        lambda r: f"Exchange Act Release No. {digits(r, '34-N####')}",
        lambda r: f"H.R. Rep. No. {digits(r, '94-N###')}, pp. {digits(r, '12-N##')}",
        lambda r: f"D.C. Code \u00a7 {digits(r, '12-N##')}; Form {digits(r, '10-N')}",
        lambda r: f"a dose of {digits(r, '10-N#')} mg for {digits(r, '12-N#')} weeks",
        lambda r: f"SEC File No. {digits(r, '33-N####')}; Contract No. {digits(r, '1#-N###')}",
        lambda r: f"pages {digits(r, '11-1##')}, 2019-{digits(r, '2#')}, 5:{digits(r, '1#')}-{digits(r, '2#')}",
        lambda r: f"S. Rep. No. {digits(r, '95-N##')}; Part No. {digits(r, '1#-N##')}",
        lambda r: r.choice([f"Ordinance No. {digits(r, '1#-N##')}", *[f"Rule No. {digits(r, '1#-N#')}"] * 5]),
    ],
    "birth": [
        lambda r: f"He was born in {r.randrange(1900, 2000)}; the suit was filed {date(r)}.",
        lambda r: f"persons born on or after {date(r)}",
        lambda r: f"individuals born before {date(r)} or after {date(r)}",
        lambda r: f"She was appointed {date(r)}.",
        lambda r: f"The company was born in Ohio. On {date(r)} it merged.",
        lambda r: f"the birth certificate was issued {date(r)}",
        lambda r: f"the newborn was named {date(r)}; stubborn {date(r)}",
        lambda r: f"any child born between {date(r)} and {date(r)}",
        lambda r: f"date of filing: {date(r)}; date of issue {date(r)}",
        lambda r: f"(a) notice; (b) {date(r)}; cost borne on {date(r)}",
        lambda r: r.choice([f"The foal was born {date(r)}.", *[f"born to run, {r.randrange(1900, 2000)}"] * 5]),
    ],
    "phone": [
        lambda r: f"26 U.S.C. 501-502; 45 CFR 164.514; D.C. Code 22-{digits(r, 'N###')}",
        lambda r: f"Docket No. {phone(r)}; Case No. {phone(r)}",
        lambda r: f"DFARS 252.204-{digits(r, '7###')}, FAR 52.212-{digits(r, '#')}",
        lambda r: f"pp. {digits(r, 'N##-N##')}, 410 U.S. {digits(r, '1##')}, {digits(r, '2##')}-{digits(r, '3##')}",
        lambda r: f"${digits(r, 'N,###,###')} and ${phone(r)}; {digits(r, '2#########')} bytes",
        lambda r: f"ISBN 978-0-{digits(r, '3##-#####-#')}; NDC {digits(r, '5####-0##-##')}",
        lambda r: f"on 2019-03-{digits(r, '1#')} to 04-05-20{digits(r, '##')}; form {ssn(r)}",
        lambda r: f"part number {phone(r)}; serial no. {phone(r, '.')}",
        lambda r: f"rows {phone(r, ' ')} and +12.5 and +{digits(r, 'N.#######')}",
        lambda r: f"fictional 202-555-01{digits(r, '##')}; {area(r)}-911-{digits(r, '####')}",
        lambda r: f"docket {digits(r, '2##-cv-N####')}; license no. {phone(r)}; 03{digits(r, '# #### ####')}",
        lambda r: r.choice([f"lot {phone(r)}", *[f"Claim {phone(r)}"] * 5]),
    ],
}  # fmt: skip


def make_document(rng: random.Random, kind: str, sentence: str) -> tuple[str, list[tuple[int, int, str]]]:
    """Put a sentence between filler; return the text without marks and what stood between them."""
    around = rng.sample(FILLER, 2)
    marked = rng.choice([" ", "\n", "\n\n"]).join([around[0], sentence, around[1]])
    text, spans = "", []
    for before, value in re.findall(r"([^<]*)(?:<([^>]*)>)?", marked):
        text += before
        if value:
            spans.append((len(text), len(text) + len(value), kind))
            text += value
    return text, spans


@pytest.fixture(scope="module")
def documents():
    return make_documents()


def make_documents() -> list[tuple[str, list[tuple[int, int, str]]]]:
    rng = random.Random(0)
    return [
        make_document(rng, kind, makers[index % len(makers)](rng))
        for sentences in (PLANTED, HARD_NEGATIVES)
        for kind, makers in sentences.items()
        for index in range(SENTENCES_PER_KIND)
    ]


def measure(documents) -> dict[str, tuple[int, float, float]]:
    """Return kind -> (planted, precision, recall) over all documents, those about other kinds among them.

    Only what is found exactly where it is planted is right.
    """
    planted, found, right = Counter(), Counter(), Counter()
    for text, spans in documents:
        there = set(EVERYTHING.find(text))
        planted.update(kind for _, _, kind in spans)
        found.update(kind for _, _, kind in there)
        right.update(kind for _, _, kind in there & set(spans))
    return {kind: (planted[kind], right[kind] / found[kind], right[kind] / planted[kind]) for kind in KINDS}


def accuracy_table() -> str:
    """Return the table for documentation, in Markdown."""
    rows = [
        f"| {kind} | {planted} | {precision:.3f} | {recall:.3f} |"
        for kind, (planted, precision, recall) in measure(make_documents()).items()
    ]
    return "\n".join(["| kind | planted | precision | recall |", "|---|---|---|---|", *rows])


def test_each_kind_is_found_with_precision_and_recall_of_at_least_095(documents):
    low = {kind: figures for kind, figures in measure(documents).items() if min(figures[1:]) < 0.95}
    assert not low
    assert all(len(spans) for _, spans in documents[: SENTENCES_PER_KIND * len(KINDS)])


def test_replacing_changes_nothing_but_what_was_found(documents):
    for text, _ in documents[::3]:
        redacted, counts = EVERYTHING.apply(text)
        found = EVERYTHING.find(text)
        rebuilt = redacted
        for start, end, kind in found:
            before, after = rebuilt[:start], rebuilt[start:]
            assert after.startswith(KINDS[kind].placeholder)
            rebuilt = before + text[start:end] + after[len(KINDS[kind].placeholder) :]
        assert rebuilt == text
        assert counts == Counter(kind for _, _, kind in found)


def test_replacing_twice_is_replacing_once(documents):
    for text, _ in documents[::3]:
        redacted, _ = EVERYTHING.apply(text)
        assert EVERYTHING.apply(redacted) == (redacted, Counter())


def test_no_placeholder_is_found_behind_any_cue():
    cues = ("SSN: ", "EIN ", "account no. ", "MRN ", "Docket No. ", "born on ", "Tel. ", "card ", "")
    for placeholder in PLACEHOLDERS:
        for cue in cues:
            assert EVERYTHING.find(f"{cue}{placeholder}.") == []


@pytest.mark.parametrize(
    "profile, text, redacted",
    [
        ("legal", "SS No. 523-45-6789, Claim No. 523-45-6789", "SS No. 000-00-0000, Claim No. 000-00-0000"),
        ("legal", "the last digits are xxx-xx-6789", "the last digits are 000-00-0000"),
        ("legal", "account number ending in 1234", "account number ending in 0000000000"),
        ("legal", "info@m\u00fcnchen.de or john(at)firm.com", "email@example.com or email@example.com"),
        ("legal", '"night desk"@firm.org', "email@example.com"),
        ("legal", "Tel. 030/1234567 or 555-4134", "Tel. 555-555-0100 or 555-4134"),
        ("legal", "\uc804\ud654 02-555-4142, 010-4418-0277", "\uc804\ud654 555-555-0100, 555-555-0100"),
        ("medical", "Pt. ID 482913, MRN ABC4829 20 mg", "Pt. ID 00000000, MRN 00000000 20 mg"),
        ("medical", "NHS number 943 476 5919 or NHS 943 476 5919", "NHS number 00000000 or NHS 00000000"),
        (
            "medical",
            "station\u00e4r vom 04.02.2022 bis 11.02.2022",
            "station\u00e4r vom January 1, 1900 bis January 1, 1900",
        ),
        ("medical", "aged 91 or 89-year-old, AGE: 93", "aged 90 or older or 89-year-old, aged 90 or older"),
        ("finance", "USt-IdNr. DE 284 117 309; SIRET 482 914 077 00018", "USt-IdNr. 00-0000000; SIRET 00-0000000"),
    ],
)
def test_a_form_that_was_missed_once_is_replaced(profile, text, redacted):
    assert Redactor(profile).apply(text)[0] == redacted


def test_a_number_without_the_right_check_digit_is_no_identifier():
    assert EVERYTHING.find("the 22778519D and 1HGCM82633A004352 are right") != []
    assert EVERYTHING.find("the 22778519E and 1HGCM82633A004353 are not") == []


def test_a_kind_to_leave_does_not_hide_one_to_replace_behind_it():
    text = "account no. 512-44-1234"
    assert Redactor("general", {"account": "leave"}).apply(text) == ("account no. 000-00-0000", {"ssn": 1})
    assert Redactor("legal", {"ssn": "leave", "account": "leave"}).apply(text)[0] == text


def test_a_kind_to_drop_is_not_hidden_by_one_to_replace_around_it():
    text = "http://intranet.firm.org/lookup?ssn=512-44-1234"
    assert Redactor("legal").apply(text) == ("https://example.com/", {"url": 1})
    assert Redactor("legal", {"ssn": "drop"}).apply(text) == (None, {"ssn": 1})


@pytest.mark.parametrize(
    "text, redacted",
    [
        ("see (https://a.org/patients/12345/labs).", "see (https://example.com/)."),
        ("GET /patients/12345?x=1 HTTP/1.1", "GET https://example.com/ HTTP/1.1"),
        ("<a href='http://a.org/x?a=1&amp;ssn=512441234'>", "<a href='https://example.com/'>"),
        ("http://a.org/login?next=http://b.org/?mrn=44188", "https://example.com/"),
        ("ftp://jane:geheim@files.a.org/x, then", "https://example.com/, then"),
        ("a.org/p;jsessionid=5AC6268DD8D4D5D1.n2 \u00e9", "https://example.com/ \u00e9"),
        ("http://a.org/?firstname=Jane", "https://example.com/"),
        ("see https://www.linkedin.com/in/jane-doe, or ask", "see https://example.com/, or ask"),
        ("https://firm.sharepoint.com/personal/jane_doe/notes", "https://example.com/"),
        ("http://a.org/b/users/2024/ and http://a.org/?patient=2024", None),
        ("http://a.org/?patient={id}&token=YOUR_TOKEN_1234&user=all", None),
        ("http://a.org:8080/@b, patients/12345, if(a;user=12345)", None),
    ],
)
def test_a_url_with_an_identifier_is_replaced_as_a_whole_and_others_stay(text, redacted):
    assert Redactor("general").apply(text)[0] == (redacted or text)


def test_letters_whose_lower_case_is_longer_do_not_shift_what_is_found():
    assert Redactor("medical").apply("\u0130\u0130 MRN: A482913, \u0130")[0] == "\u0130\u0130 MRN: 00000000, \u0130"


def test_the_table_of_forms_that_the_patterns_had_not_seen_gives_what_they_find_now():
    table = Path(__file__).parents[1] / "benchmarks" / "results" / "personal_data_forms.csv"
    rows = {row["kind"]: row for row in csv.DictReader(table.open(encoding="utf-8"))}
    now = measure_forms()
    assert {kind: (row["marked"], row["recall_after"], row["precision_after"]) for kind, row in rows.items()} == {
        kind: tuple(str(row[key]) for key in ("marked", "recall", "precision")) for kind, row in now.items()
    }
    assert now["all"]["precision"] > 0.98
    assert now["all"]["recall"] > 0.7, "a sixth of the values are names and addresses, which no pattern finds"


def mixed_texts() -> list[str]:
    """Return texts of parts of the forms and of characters that values have, one by one and joined without a space."""
    rng, forms = random.Random(0), [text for text, _ in read_forms().values()]
    alphabets = ("0123456789-. ()/+:", "0123456789-. ABab@:", '0123456789 \u00e9abc@.(at)[ ]"', "+(0 1234567.-/")
    texts = forms + ["".join(rng.choices(rng.choice(alphabets), k=rng.randrange(20, 300))) for _ in range(400)]
    for _ in range(300):
        parts = [(text, rng.randrange(len(text))) for text in rng.choices(forms, k=rng.randrange(1, 9))]
        texts.append(rng.choice(["", " ", "\n"]).join(text[i : i + rng.randrange(100)] for text, i in parts))
    return texts


def test_looking_only_where_a_value_can_be_finds_what_the_whole_text_gives():
    found = Counter()
    for text in mixed_texts():
        lowered, digits = text.lower(), find_digits(text)
        for name, kind in KINDS.items():
            if kind.form != NEVER:
                matches = [match for match in PATTERNS[name].finditer(text) if is_personal(kind, match)]
                there = [match for match in find_forms(name, text, lowered, digits) if is_personal(kind, match)]
                assert [match.span() for match in there] == [match.span() for match in matches], (name, text)
                found[name] += len(matches)
    assert min(found.values()) > 5 and len(found) == sum(kind.form != NEVER for kind in KINDS.values())


def test_labels_are_found_wherever_a_word_begins_with_them():
    found, kinds = Counter(), tuple(LABELLED)
    for text in mixed_texts()[::2]:
        lowered, expected = text.lower(), set()
        for kind in kinds:
            for label in LABELLED[kind].labels:
                for place in (match.start() for match in re.finditer(f"(?={re.escape(label)})", lowered)):
                    match = label_pattern(kind, label).match(text, place)
                    begins = place == 0 or not lowered[place - 1].isalnum()
                    if begins and match and len(re.findall("[0-9]", match["value"])) >= LABELLED[kind].min_digits:
                        expected.add((*match.span("value"), kind))
        assert set(find_labelled(kinds, text, lowered)) == expected
        found.update(kind for _, _, kind in expected)
    assert found.keys() == LABELLED.keys()


def test_a_text_without_digits_or_at_signs_comes_back_as_it_is():
    text = "Le contrat \u2014 \u5408\u540c \U0001f4dc\u200b\tis void.\r\n"
    assert EVERYTHING.apply(text) == (text, Counter())


def test_unicode_around_a_value_stays_as_it_is():
    text = "\u4e2d\u6587\U0001f4de202-456-1111\U0001f4de \u00e9t\u00e9 a\u0301 \ufeff jane@firm.org\u3002"
    redacted, counts = EVERYTHING.apply(text)
    assert redacted == text.replace("202-456-1111", "555-555-0100").replace("jane@firm.org", "email@example.com")
    assert counts == {"phone": 1, "email": 1}


def test_drop_loses_the_document_and_leave_only_counts():
    text = "SSN: 512-44-1234, Tel. 202-456-1111, jane@firm.org and lee@firm.org"
    counts = {"ssn": 1, "phone": 1, "email": 2}
    assert Redactor("general", {"ssn": "drop"}).apply(text) == (None, counts)
    assert Redactor("general", dict.fromkeys(("ssn", "phone", "email"), "leave")).apply(text) == (text, counts)
    assert Redactor("general", {"email": "leave"}).apply(text) == (
        "SSN: 000-00-0000, Tel. 555-555-0100, jane@firm.org and lee@firm.org",
        counts,
    )
    assert Redactor("general", {"ssn": "drop"}).apply("Tel. 202-456-1111") == ("Tel. 555-555-0100", {"phone": 1})


def test_a_profile_looks_for_its_own_kinds_and_an_action_adds_one():
    text = "MRN: 20482913. See No. 1:19-cv-01234."
    assert Redactor("medical").apply(text) == ("MRN: 00000000. See No. 1:19-cv-01234.", {"record": 1})
    assert Redactor("legal").apply(text) == (text, Counter())
    assert Redactor("legal", {"docket": "replace"}).apply(text)[0] == "MRN: 20482913. See No. 00-cv-00000."
    assert not any("docket" in kinds for kinds in PROFILES.values())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("banking",), "no profile 'banking'; choose from finance, general, legal, medical"),
        (("legal", {"name": "drop"}), "no kind 'name'; choose from email, ip, iban"),
        (("legal", {"ssn": "mask"}), "no action 'mask'; choose from replace, drop, leave"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_are_known(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Redactor(*arguments)


def test_a_redactor_does_the_same_after_pickling():
    text = "born March 3, 1960; SSN 512-44-1234"
    redactor = Redactor("legal", {"birth": "leave"})
    assert pickle.loads(pickle.dumps(redactor)).apply(text) == redactor.apply(text)


@pytest.mark.parametrize(
    "unit",
    ["1", "1 ", "1-", "1.", "1:", "@", ".", "a", "a.", "a@", "a@a.", "@1", "+1 ", "(202) ", "202-", "DE89 3704 ", "A1",
     "born in ", "Tel. 0", "DNI 1 ", "age 9", "date of ", "implant ", "vom 1.1.2020 bis ",
     "account no. 1234 ", "account " * 12 + "123456 ", "MRN ", "May 3, ", "1111-1111-1111-1111-",
     "/patients/12345", "?mrn=1234", "://a:b"],
)  # fmt: skip
def test_a_megabyte_of_one_pattern_is_searched_in_linear_time(unit):
    """The alarm only ends a search that quadratic time would make last for an hour; linear time is a second."""

    def too_long(*_):
        raise TimeoutError(f"still searching a megabyte of {unit!r}")

    previous = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    try:
        EVERYTHING.find("x@y born dob account MRN record " + unit * (1_000_000 // len(unit)))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


if __name__ == "__main__":
    sys.stdout.write(accuracy_table() + "\n")
