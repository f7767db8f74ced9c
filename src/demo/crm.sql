-- The primary: PostgreSQL.
CREATE ROLE crm LOGIN PASSWORD 'demo';
CREATE ROLE anechoic LOGIN REPLICATION PASSWORD 'demo';
CREATE DATABASE crm OWNER crm;
\connect crm
GRANT CONNECT, CREATE ON DATABASE crm TO anechoic;
GRANT crm TO anechoic;
SET ROLE crm;
CREATE TABLE contacts (
    id          bigint PRIMARY KEY,
    "firstName" text NOT NULL,
    "lastName"  text NOT NULL,
    email       text,
    signup      date NOT NULL,
    state       text NOT NULL,
    notes       text -- no binding names it: it stays here
);
CREATE TABLE orders (
    id      bigint PRIMARY KEY,
    contact bigint NOT NULL,
    item    varchar(20) NOT NULL,
    qty     integer NOT NULL,
    total   numeric(10,2) NOT NULL,
    placed  timestamptz NOT NULL,
    state   text NOT NULL
);
CREATE TABLE stock (
    sku     varchar(20) PRIMARY KEY,
    title   text NOT NULL,
    on_hand integer NOT NULL,
    price   numeric(10,2) NOT NULL
);
CREATE TABLE users (
    id       uuid PRIMARY KEY,
    login    varchar(60) NOT NULL,
    name     text NOT NULL,
    enabled  boolean NOT NULL,
    settings jsonb NOT NULL
);
