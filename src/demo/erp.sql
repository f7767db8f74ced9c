-- MariaDB, by people who name things in German.
CREATE DATABASE erp CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin; -- a key is what its bytes are
CREATE USER erp@'%' IDENTIFIED BY 'demo';
GRANT ALL ON erp.* TO erp@'%';
CREATE USER anechoic@'%' IDENTIFIED BY 'demo';
GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO anechoic@'%';
GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON erp.* TO anechoic@'%';
GRANT CREATE, DROP, SELECT, INSERT, UPDATE, DELETE ON anechoic.* TO anechoic@'%';
USE erp;
CREATE TABLE partner (
    nr         bigint PRIMARY KEY,
    vorname    text NOT NULL,
    nachname   text NOT NULL,
    email      text,
    kunde_seit date NOT NULL,
    zustand    text NOT NULL
);
CREATE TABLE auftrag (
    nr       bigint PRIMARY KEY,
    partner  bigint NOT NULL,
    artikel  varchar(20) NOT NULL,
    menge    int NOT NULL,
    summe    decimal(10,2) NOT NULL,
    angelegt datetime(6) NOT NULL, -- UTC
    stand    char(1) NOT NULL      -- N, P, S
);
CREATE TABLE artikel (
    nummer      varchar(20) PRIMARY KEY,
    bezeichnung text NOT NULL,
    stückzahl   int NOT NULL,
    preis       decimal(10,2) NOT NULL
);
CREATE TABLE benutzer ( -- only those who may log in, and nobody changes them here
    id      binary(16) PRIMARY KEY,
    login   varchar(60) NOT NULL,
    anzeige text NOT NULL,
    aktiv   tinyint(1) NOT NULL
);
